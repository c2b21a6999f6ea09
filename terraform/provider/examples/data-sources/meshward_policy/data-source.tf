data "meshward_policy" "shop" {
  network = "shop"
}

output "revision" {
  value = data.meshward_policy.shop.revision
}
