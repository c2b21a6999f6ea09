data "meshward_service" "api" {
  network = "shop"
  name    = "api"
}

output "address" {
  value = data.meshward_service.api.addresses[0]
}
