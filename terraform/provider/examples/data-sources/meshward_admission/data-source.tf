data "meshward_admission" "shop" {
  network = "shop"
}

output "keys" {
  value = keys(data.meshward_admission.shop.keys)
}
