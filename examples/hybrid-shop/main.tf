# The shop in a public cloud, a private cloud and a rack, with one policy. See README.md.

terraform {
  required_version = ">= 1.11"
  required_providers {
    meshward = { source = "meshward/meshward" }
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.25"
    }
    openstack = {
      source  = "terraform-provider-openstack/openstack"
      version = "~> 3.3"
    }
    libvirt = {
      source  = "dmacvicar/libvirt"
      version = "~> 0.8.3"
    }
  }
}

provider "meshward" {
  context = var.context
}
provider "aws" {
  region = "eu-central-1"
}
provider "openstack" {
  cloud = "private"
}
provider "libvirt" {
  uri = "qemu+ssh://root@rack.example.net/system"
}

# The mesh: a network, one policy for every cloud, a token for each site.

resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16", "fd42::/48"]
}

resource "meshward_policy" "shop" {
  network = meshward_network.shop.id
  # The same file as that of the demo.
  files = { "policy.yaml" = file("${path.module}/../shop/policy.yaml") }
}

resource "meshward_join_token" "site" {
  for_each = var.node_counts

  site           = each.key
  uses           = max(each.value, 1)
  ttl            = "2h"
  networks       = [meshward_network.shop.id]
  needs_approval = true
}

# Whoever has a token and another name waits.
resource "meshward_node" "all" {
  for_each = toset(concat(module.aws.node_names, module.openstack.node_names, module.rack.node_names))
  name     = each.key
}

# The machines. The blocks differ by the module's name, and by what only that cloud knows.

module "aws" {
  source = "../../terraform/modules/aws"

  name        = "shop-aws"
  node_count  = var.node_counts["aws"]
  token       = meshward_join_token.site["aws"].token
  coordinator = var.coordinator
  package     = var.package
}

module "openstack" {
  source = "../../terraform/modules/openstack"

  name        = "shop-openstack"
  node_count  = var.node_counts["openstack"]
  token       = meshward_join_token.site["openstack"].token
  coordinator = var.coordinator
  package     = var.package
  uplink      = "public"
}

module "rack" {
  source = "../../terraform/modules/on-prem"

  name        = "shop-rack"
  node_count  = var.node_counts["rack"]
  token       = meshward_join_token.site["rack"].token
  coordinator = var.coordinator
  package     = var.package
  uplink      = "br0"
}
