terraform {
  required_version = ">= 1.11"
  required_providers {
    openstack = {
      source  = "terraform-provider-openstack/openstack"
      version = "~> 3.3"
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
}

locals {
  tags = [for key, value in var.tags : "${key}=${value}"]
  nodes = { for name, machine in openstack_compute_instance_v2.node : name => {
    id              = machine.id
    private_address = machine.access_ip_v4
    public_address  = var.uplink == null ? null : openstack_networking_floatingip_v2.node[name].address
  } }
  # OpenStack's machines have no identity of their own towards its API.
  identity = null
}

data "openstack_images_image_v2" "node" {
  name        = coalesce(var.machine.image, "debian-12")
  most_recent = true
}

data "openstack_networking_network_v2" "uplink" {
  count = var.uplink == null ? 0 : 1
  name  = var.uplink
}

resource "openstack_networking_network_v2" "this" {
  name = var.name
  tags = local.tags
}

resource "openstack_networking_subnet_v2" "this" {
  name       = var.name
  network_id = openstack_networking_network_v2.this.id
  cidr       = var.cidr
  ip_version = 4
  tags       = local.tags
}

resource "openstack_networking_router_v2" "this" {
  count               = var.uplink == null ? 0 : 1
  name                = var.name
  external_network_id = data.openstack_networking_network_v2.uplink[0].id
  tags                = local.tags
}

resource "openstack_networking_router_interface_v2" "this" {
  count     = var.uplink == null ? 0 : 1
  router_id = openstack_networking_router_v2.this[0].id
  subnet_id = openstack_networking_subnet_v2.this.id
}

resource "openstack_networking_secgroup_v2" "this" {
  name        = var.name
  description = "Meshward nodes: UDP of the mesh, nothing else"
  tags        = local.tags
}

resource "openstack_networking_secgroup_rule_v2" "mesh" {
  security_group_id = openstack_networking_secgroup_v2.this.id
  description       = "WireGuard, one port for each network"
  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = "udp"
  port_range_min    = local.first_port
  port_range_max    = local.last_port
  remote_ip_prefix  = "0.0.0.0/0"
}

resource "openstack_networking_port_v2" "node" {
  for_each = toset(local.names)

  name               = each.key
  network_id         = openstack_networking_network_v2.this.id
  security_group_ids = [openstack_networking_secgroup_v2.this.id]
  tags               = local.tags
  fixed_ip {
    subnet_id = openstack_networking_subnet_v2.this.id
  }
}

resource "openstack_networking_floatingip_v2" "node" {
  for_each = var.uplink == null ? toset([]) : toset(local.names)

  pool    = var.uplink
  port_id = openstack_networking_port_v2.node[each.key].id
  tags    = local.tags

  depends_on = [openstack_networking_router_interface_v2.this]
}

resource "openstack_compute_instance_v2" "node" {
  for_each = module.bootstrap

  name              = each.key
  flavor_name       = coalesce(var.machine.type, "m1.small")
  availability_zone = var.location
  config_drive      = true
  user_data         = each.value.user_data
  metadata          = var.tags

  block_device {
    uuid                  = data.openstack_images_image_v2.node.id
    source_type           = "image"
    destination_type      = "volume"
    volume_size           = var.machine.disk_gb
    boot_index            = 0
    delete_on_termination = true
  }
  network {
    port = openstack_networking_port_v2.node[each.key].id
  }
  lifecycle {
    # A newer image, and a token that is long used, replace no machine.
    ignore_changes = [user_data, block_device[0].uuid]
  }
}
