resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}

# What the shop's own pipeline may do: the policy of its network, but for the guardrails.
resource "meshward_service_account" "ci" {
  name     = "shop-ci"
  role     = "owner"
  networks = [meshward_network.shop.id]
}

# One that ends by itself, unless a plan of its last week renews it.
resource "meshward_service_account" "dashboard" {
  name         = "dashboard"
  role         = "viewer"
  lifetime     = "30d"
  renew_before = "7d"
}
