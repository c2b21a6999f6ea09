data "meshward_service_account" "ci" {
  name = "shop-ci"
}

output "role" {
  value = data.meshward_service_account.ci.role
}
