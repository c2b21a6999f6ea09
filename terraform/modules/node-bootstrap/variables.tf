variable "name" {
  description = "The node's name in the mesh."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.name))
    error_message = "A node's name has 1 to 63 small letters, digits and dashes, and begins and ends with none of these."
  }
}

variable "coordinator" {
  description = "The coordinator's host name or address, with :PORT if it is not 7443."
  type        = string
  validation {
    condition     = can(regex("^[0-9A-Za-z.:\\[\\]_-]+$", var.coordinator))
    error_message = "Write HOST or HOST:PORT, such as mesh.example.net or [2001:db8::7]:7443."
  }
}

variable "token" {
  description = "A join token, such as that of a `meshward_join_token`."
  type        = string
  sensitive   = true
  validation {
    condition     = can(regex("^[0-9A-Za-z._~-]+$", var.token))
    error_message = "That is no join token: `meshctl token create` and the resource meshward_join_token make one."
  }
}

variable "package" {
  description = "Where the programs are: a tar archive, compressed or not, with `meshward-node` and `meshctl`, and its SHA-256 in hexadecimal. It is not unpacked if it is another."
  type = object({
    url    = string
    sha256 = string
  })
  validation {
    condition     = can(regex("^https?://[^\\s'\"]+$", var.package.url)) && can(regex("^[0-9a-f]{64}$", var.package.sha256))
    error_message = "`url` begins with https:// (or http://), and `sha256` has 64 hexadecimal digits, as sha256sum prints them."
  }
}

variable "labels" {
  description = "Labels that the node joins with. Those that a `meshward_node` gives stand over them."
  type        = map(string)
  default     = {}
  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[0-9A-Za-z._/-]+$", key)) && can(regex("^[0-9A-Za-z._/-]*$", value))])
    error_message = "Labels have letters, digits, `.`, `_`, `-` and `/`."
  }
}

variable "settings" {
  description = "Keys of `/etc/meshward/node.toml`, such as `{ docker_plugin = \"/run/docker/plugins/meshward.sock\", first_port = 51820 }`: texts, numbers, truth values and lists of texts."
  type        = any
  default     = {}
}

variable "firewall_ports" {
  description = "Where no cloud has a firewall in front of the machine: the first and the last UDP port that stay open; everything else that comes in unasked is dropped by nftables, SSH too. No firewall, if it is left out."
  type = object({
    first = number
    last  = number
  })
  default = null
}
