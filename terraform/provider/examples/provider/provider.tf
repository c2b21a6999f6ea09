terraform {
  required_version = ">= 1.11"
  required_providers {
    meshward = { source = "meshward/meshward" }
  }
}

# The coordinator and the credential: the output of `meshctl credential create`.
provider "meshward" {
  context = "~/.config/meshward/context.json"
}
