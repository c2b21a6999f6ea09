data "meshward_route" "legacy" {
  network = "shop"
  node    = "gw1"
  prefix  = "10.8.0.0/24"
}

output "state" {
  value = data.meshward_route.legacy.state
}
