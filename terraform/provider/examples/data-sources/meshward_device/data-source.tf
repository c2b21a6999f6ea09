data "meshward_device" "db" {
  network = "shop"
  name    = "db-legacy"
}

output "addresses" {
  value = data.meshward_device.db.addresses
}
