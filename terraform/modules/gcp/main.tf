terraform {
  required_version = ">= 1.11"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
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
  labels = { for key, value in var.tags : lower(key) => lower(value) }
  nodes = { for name, machine in google_compute_instance.node : name => {
    id              = machine.id
    private_address = machine.network_interface[0].network_ip
    public_address  = machine.network_interface[0].access_config[0].nat_ip
  } }
  identity = google_service_account.node.email
}

resource "google_compute_network" "this" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "this" {
  name          = var.name
  network       = google_compute_network.this.id
  ip_cidr_range = var.cidr
  region        = var.location == null ? null : regex("^[a-z]+-[a-z]+[0-9]+", var.location)
}

resource "google_compute_firewall" "mesh" {
  name          = "${var.name}-mesh"
  description   = "WireGuard, one port for each network"
  network       = google_compute_network.this.id
  direction     = "INGRESS"
  source_ranges = ["0.0.0.0/0"]
  target_tags   = [var.name]
  allow {
    protocol = "udp"
    ports    = ["${local.first_port}-${local.last_port}"]
  }
}

resource "google_service_account" "node" {
  account_id   = substr("${var.name}-node", 0, 30)
  display_name = "Meshward nodes of ${var.name}"
}

resource "google_compute_instance" "node" {
  for_each = module.bootstrap

  name         = each.key
  machine_type = coalesce(var.machine.type, "e2-small")
  zone         = var.location
  tags         = [var.name]
  labels       = local.labels
  metadata     = { user-data = each.value.user_data }

  boot_disk {
    initialize_params {
      image = coalesce(var.machine.image, "debian-cloud/debian-12")
      size  = var.machine.disk_gb
    }
  }
  network_interface {
    subnetwork = google_compute_subnetwork.this.id
    access_config {}
  }
  service_account {
    email  = google_service_account.node.email
    scopes = ["cloud-platform"]
  }
  shielded_instance_config {
    enable_secure_boot = true
  }
  lifecycle {
    # A token that is long used replaces no machine.
    ignore_changes = [metadata, boot_disk[0].initialize_params[0].image]
  }
}
