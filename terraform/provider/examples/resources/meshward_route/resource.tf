resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16", "fd42::/48"]
}

resource "meshward_node" "gateway" {
  name = "gw1"
}

resource "meshward_route" "legacy" {
  network = meshward_network.shop.id
  node    = meshward_node.gateway.id
  prefix  = "10.8.0.0/24"
}

# An egress gateway, for both address families of the network.
resource "meshward_route" "internet" {
  for_each = toset(["0.0.0.0/0", "::/0"])
  network  = meshward_network.shop.id
  node     = meshward_node.gateway.id
  prefix   = each.value
}
