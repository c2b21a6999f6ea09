data "meshward_node" "gateway" {
  name = "gw1"
}

output "site" {
  value = data.meshward_node.gateway.site
}
