resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}

resource "meshward_admission" "shop" {
  network = meshward_network.shop.id

  rule {
    name   = "web-is-ours"
    for    = "app=web"
    images = ["registry.example/shop/*"]
  }
}
