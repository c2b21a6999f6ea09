# The same in every module that makes nodes, so that a root module spans clouds by repeating one block.

variable "name" {
  description = "What the group is called. The nodes are NAME-0, NAME-1 and so on."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}$", var.name))
    error_message = "A group's name has 1 to 31 small letters, digits and dashes, and begins with a letter."
  }
}

variable "node_count" {
  description = "How many nodes."
  type        = number
  default     = 1
  validation {
    condition     = var.node_count >= 0 && floor(var.node_count) == var.node_count
    error_message = "A whole number from 0 on."
  }
}

variable "coordinator" {
  description = "The coordinator's host name or address, with :PORT if it is not 7443."
  type        = string
}

variable "token" {
  description = "A join token that is good for at least so many nodes, such as that of a `meshward_join_token`."
  type        = string
  sensitive   = true
}

variable "package" {
  description = "Where the programs are, as `node-bootstrap` takes it: a tar archive with `meshward-node` and `meshctl`, and its SHA-256."
  type = object({
    url    = string
    sha256 = string
  })
}

variable "location" {
  description = "Where in the cloud: see the module's README. The cloud's own choice, if it is left out and there is one."
  type        = string
  default     = null
}

variable "machine" {
  description = "What machines: the cloud's name of a type and of an image, and the size of the disk in GiB."
  type = object({
    type    = optional(string)
    image   = optional(string)
    disk_gb = optional(number, 20)
  })
  default = {}
}

variable "cidr" {
  description = "The IPv4 prefix of the cloud's network that the machines stand in. It has nothing to do with the mesh's networks, and may be the same in every cloud."
  type        = string
  default     = "10.90.0.0/24"
  validation {
    condition     = can(cidrhost(var.cidr, 0))
    error_message = "Write a prefix such as 10.90.0.0/24."
  }
}

variable "uplink" {
  description = "The cloud's network that leads out, where it has to be named: see the module's README."
  type        = string
  default     = null
}

variable "ports" {
  description = "The UDP ports that the cloud's firewall lets in: one for each of the mesh's networks, from `first` on. Nothing else comes in."
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
  description = "Keys of `/etc/meshward/node.toml`, as `node-bootstrap` takes them."
  type        = any
  default     = {}
}

variable "tags" {
  description = "Tags of everything that the cloud can tag."
  type        = map(string)
  default     = {}
}
