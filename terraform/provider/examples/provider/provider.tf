terraform {
  required_version = ">= 1.11"
  required_providers {
    meshward = { source = "meshward/meshward" }
  }
}

# Which coordinator, and as whom: a file as `meshctl credential create` prints it.
provider "meshward" {
  context = "~/.config/meshward/context.json"
}
