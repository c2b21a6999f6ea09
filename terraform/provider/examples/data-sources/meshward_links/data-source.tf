data "meshward_links" "shop" {
  network = "shop"
}

# Pairs with denied packets.
output "denied" {
  value = [for link in data.meshward_links.shop.links : "${link.from.app} to ${link.to.app}" if link.denied > 0]
}
