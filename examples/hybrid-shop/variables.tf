variable "context" {
  description = "The coordinator's address and an admin's credential, as `meshctl credential create` prints them."
  type        = string
  default     = "~/.config/meshward/context.json"
}

variable "coordinator" {
  description = "The coordinator's host name or address, as the nodes reach it."
  type        = string
}

variable "package" {
  description = "Where the nodes find the programs, and their SHA-256."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "node_counts" {
  description = "How many nodes each site has."
  type        = map(number)
  default = {
    aws       = 2
    openstack = 2
    rack      = 1
  }
}
