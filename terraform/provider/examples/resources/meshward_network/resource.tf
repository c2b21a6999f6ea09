resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16", "fd42::/48"]
}
