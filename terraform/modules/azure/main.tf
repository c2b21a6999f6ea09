terraform {
  required_version = ">= 1.11"
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.55"
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
  nodes = { for name, machine in azurerm_linux_virtual_machine.node : name => {
    id              = machine.id
    private_address = machine.private_ip_address
    public_address  = machine.public_ip_address
  } }
  identity = azurerm_user_assigned_identity.node.principal_id
  # URN: publisher, offer, sku, version.
  image = split(":", coalesce(var.machine.image, "Debian:debian-12:12-gen2:latest"))
}

resource "azurerm_resource_group" "this" {
  name     = var.name
  location = coalesce(var.location, "westeurope")
  tags     = var.tags
}

resource "azurerm_virtual_network" "this" {
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  address_space       = [var.cidr]
  tags                = var.tags
}

resource "azurerm_subnet" "this" {
  name                 = var.name
  resource_group_name  = azurerm_resource_group.this.name
  virtual_network_name = azurerm_virtual_network.this.name
  address_prefixes     = [var.cidr]
}

resource "azurerm_network_security_group" "this" {
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags
}

resource "azurerm_network_security_rule" "mesh" {
  name                        = "mesh"
  description                 = "WireGuard, one port for each network"
  resource_group_name         = azurerm_resource_group.this.name
  network_security_group_name = azurerm_network_security_group.this.name
  priority                    = 100
  direction                   = "Inbound"
  access                      = "Allow"
  protocol                    = "Udp"
  source_port_range           = "*"
  source_address_prefix       = "*"
  destination_port_range      = "${local.first_port}-${local.last_port}"
  destination_address_prefix  = "*"
}

# Azure lets in what comes from its own networks unless something denies it.
resource "azurerm_network_security_rule" "nothing_else" {
  name                        = "nothing-else"
  resource_group_name         = azurerm_resource_group.this.name
  network_security_group_name = azurerm_network_security_group.this.name
  priority                    = 4096
  direction                   = "Inbound"
  access                      = "Deny"
  protocol                    = "*"
  source_port_range           = "*"
  source_address_prefix       = "*"
  destination_port_range      = "*"
  destination_address_prefix  = "*"
}

resource "azurerm_subnet_network_security_group_association" "this" {
  subnet_id                 = azurerm_subnet.this.id
  network_security_group_id = azurerm_network_security_group.this.id
}

resource "azurerm_user_assigned_identity" "node" {
  name                = "${var.name}-node"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags
}

resource "azurerm_public_ip" "node" {
  for_each = toset(local.names)

  name                = each.key
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = var.tags
}

resource "azurerm_network_interface" "node" {
  for_each = toset(local.names)

  name                = each.key
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags
  ip_configuration {
    name                          = "internal"
    subnet_id                     = azurerm_subnet.this.id
    private_ip_address_allocation = "Dynamic"
    public_ip_address_id          = azurerm_public_ip.node[each.key].id
  }
}

# Azure wants a way to log in. Nobody keeps this one: the firewall lets no SSH in, and the serial console resets it.
resource "terraform_data" "nobody" {
  input = uuid()
  lifecycle {
    ignore_changes = [input]
  }
}

resource "azurerm_linux_virtual_machine" "node" {
  for_each = module.bootstrap

  name                            = each.key
  computer_name                   = each.key
  resource_group_name             = azurerm_resource_group.this.name
  location                        = azurerm_resource_group.this.location
  size                            = coalesce(var.machine.type, "Standard_B1ms")
  network_interface_ids           = [azurerm_network_interface.node[each.key].id]
  admin_username                  = "meshward"
  admin_password                  = "M!${terraform_data.nobody.output}"
  disable_password_authentication = false
  custom_data                     = base64encode(each.value.user_data)
  secure_boot_enabled             = true
  vtpm_enabled                    = true
  tags                            = var.tags

  os_disk {
    caching              = "ReadWrite"
    storage_account_type = "Standard_LRS"
    disk_size_gb         = max(var.machine.disk_gb, 30)
  }
  source_image_reference {
    publisher = local.image[0]
    offer     = local.image[1]
    sku       = local.image[2]
    version   = local.image[3]
  }
  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.node.id]
  }
  lifecycle {
    # A token that is long used replaces no machine.
    ignore_changes = [custom_data]
  }
}
