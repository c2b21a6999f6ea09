data "meshward_network" "shop" {
  name = "shop"
}

output "prefixes" {
  value = data.meshward_network.shop.prefixes
}
