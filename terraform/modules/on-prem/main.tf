terraform {
  required_version = ">= 1.11"
  required_providers {
    libvirt = {
      source  = "dmacvicar/libvirt"
      version = "~> 0.8.3"
    }
  }
}

locals {
  names      = [for index in range(var.node_count) : "${var.name}-${index}"]
  first_port = var.ports.first
  last_port  = var.ports.first + var.ports.count - 1
}

module "bootstrap" {
  source   = "../node-bootstrap"
  for_each = toset(local.names)

  name        = each.key
  coordinator = var.coordinator
  token       = var.token
  package     = var.package
  labels      = var.labels
  settings    = merge({ first_port = local.first_port }, var.settings)

  # No cloud has a firewall in front of these.
  firewall_ports = { first = local.first_port, last = local.last_port }
}

locals {
  pool = coalesce(var.location, "default")
  # Memory in MiB and processors, such as `2048x2`.
  size = [for part in split("x", coalesce(var.machine.type, "2048x2")) : tonumber(part)]
  nodes = { for name, machine in libvirt_domain.node : name => {
    id              = machine.id
    private_address = try(machine.network_interface[0].addresses[0], null)
    public_address  = null
  } }
  # libvirt gives machines no identity.
  identity = null
}

# A network of its own behind the host's NAT, unless a bridge of the rack is named.
resource "libvirt_network" "this" {
  count     = var.uplink == null ? 1 : 0
  name      = var.name
  mode      = "nat"
  addresses = [var.cidr]
  autostart = true
}

resource "libvirt_volume" "image" {
  name   = "${var.name}-image"
  pool   = local.pool
  source = coalesce(var.machine.image, "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2")
  format = "qcow2"
}

resource "libvirt_volume" "node" {
  for_each = toset(local.names)

  name           = each.key
  pool           = local.pool
  base_volume_id = libvirt_volume.image.id
  size           = var.machine.disk_gb * 1073741824
}

resource "libvirt_cloudinit_disk" "node" {
  for_each = module.bootstrap

  name      = "${each.key}-seed.iso"
  pool      = local.pool
  user_data = each.value.user_data
  meta_data = jsonencode({ instance-id = each.key, local-hostname = each.key })
  lifecycle {
    # A token that is long used replaces no machine.
    ignore_changes = [user_data]
  }
}

resource "libvirt_domain" "node" {
  for_each = toset(local.names)

  name      = each.key
  memory    = local.size[0]
  vcpu      = local.size[1]
  autostart = true
  cloudinit = libvirt_cloudinit_disk.node[each.key].id

  cpu {
    mode = "host-passthrough"
  }
  disk {
    volume_id = libvirt_volume.node[each.key].id
  }
  network_interface {
    network_id     = var.uplink == null ? libvirt_network.this[0].id : null
    bridge         = var.uplink
    wait_for_lease = var.uplink == null
  }
  console {
    type        = "pty"
    target_type = "serial"
    target_port = "0"
  }
}
