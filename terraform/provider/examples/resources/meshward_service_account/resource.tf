resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}

# For the shop's own pipeline: it may apply the network's policy, except guardrails.
resource "meshward_service_account" "ci" {
  name     = "shop-ci"
  role     = "owner"
  networks = [meshward_network.shop.id]
}

# Expires, unless a plan in its last week renews it.
resource "meshward_service_account" "dashboard" {
  name         = "dashboard"
  role         = "viewer"
  lifetime     = "30d"
  renew_before = "7d"
}
