# This file is the same in every module that creates nodes, so that a root module can span clouds by
# repeating one block.

variable "name" {
  description = "The name of the group. The nodes are called NAME-0, NAME-1 and so on."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}$", var.name))
    error_message = "The name must have 1 to 31 lower-case letters, digits and hyphens, and begin with a letter."
  }
}

variable "node_count" {
  description = "The number of nodes."
  type        = number
  default     = 1
  validation {
    condition     = var.node_count >= 0 && floor(var.node_count) == var.node_count
    error_message = "The number of nodes must be a whole number, 0 or more."
  }
}

variable "coordinator" {
  description = "The coordinator's host name or address, with :PORT if it is not 7443."
  type        = string
}

variable "token" {
  description = "A join token with at least `node_count` uses, such as that of a `meshward_join_token`."
  type        = string
  sensitive   = true
}

variable "package" {
  description = "The URL and the SHA-256 of a tar archive with `meshward-node` and `meshctl`."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "location" {
  description = "The zone or place in the cloud; see the module's README for its form and default."
  type        = string
  default     = null
}

variable "machine" {
  description = "The machines: the cloud's names of a type and of an image, and the size of the disk in GiB."
  type = object({
    type    = optional(string)
    image   = optional(string)
    disk_gb = optional(number, 20)
  })
  default = {}
}

variable "cidr" {
  description = "The IPv4 prefix of the machines' network in the cloud. It is independent of the mesh's networks, and may be the same in every cloud."
  type        = string
  default     = "10.90.0.0/24"
  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "Write a prefix such as 10.90.0.0/24."
  }
}

variable "uplink" {
  description = "The cloud's network with access to the internet, where the module needs it; see the module's README."
  type        = string
  default     = null
}

variable "ports" {
  description = "The UDP ports that the firewall admits: one for each network of the mesh, from `first` on. It admits nothing else."
  type = object({
    first = optional(number, 51820)
    count = optional(number, 16)
  })
  default = {}
}

variable "labels" {
  description = "Labels that the nodes join with."
  type        = map(string)
  default     = {}
}

variable "settings" {
  description = "Keys of the node's configuration file, `/etc/meshward/node.toml`."
  type        = any
  default     = {}
}

variable "tags" {
  description = "Tags for all resources that can have tags."
  type        = map(string)
  default     = {}
}
