variable "name" {
  description = "The node's name in the mesh."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.name))
    error_message = "The name must have 1 to 63 lower-case letters, digits and hyphens, and neither begin nor end with a hyphen."
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
    error_message = "This is not a join token. Create one with `meshctl token create` or the resource meshward_join_token."
  }
}

variable "package" {
  description = "The URL of a tar archive, compressed or not, with `meshward-node` and `meshctl`, and its SHA-256 in hexadecimal. An archive with another SHA-256 is not installed."
  type = object({
    url    = string
    sha256 = string
  })
  validation {
    condition     = can(regex("^https?://[^\\s'\"]+$", var.package.url)) && can(regex("^[0-9a-f]{64}$", var.package.sha256))
    error_message = "`url` must begin with https:// or http://, and `sha256` must have 64 hexadecimal digits, as sha256sum prints them."
  }
}

variable "labels" {
  description = "Labels that the node joins with. Labels of a `meshward_node` override them."
  type        = map(string)
  default     = {}
  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[0-9A-Za-z._/-]+$", key)) && can(regex("^[0-9A-Za-z._/-]*$", value))])
    error_message = "Labels may contain letters, digits, `.`, `_`, `-` and `/`."
  }
}

variable "settings" {
  description = "Keys of `/etc/meshward/node.toml`, such as `{ docker_plugin = \"/run/docker/plugins/meshward.sock\", first_port = 51820 }`. Values are strings, numbers, booleans or lists of strings."
  type        = any
  default     = {}
}

variable "firewall_ports" {
  description = "The first and the last UDP port that stay open, for machines without a cloud's firewall: nftables on the machine drops all other incoming connections, SSH included. Default: no firewall on the machine."
  type = object({
    first = number
    last  = number
  })
  default = null
}
