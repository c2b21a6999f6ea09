# The same in every module that makes nodes.

output "node_names" {
  description = "The nodes' names in the mesh, known while Terraform plans."
  value       = local.names
}

output "nodes" {
  description = "The machines by their nodes' names: the cloud's id, and addresses; `public_address` is null where the cloud has none for them."
  value       = local.nodes
}

output "identity" {
  description = "The cloud's identity of the machines, for what else in the cloud they may do; null where the cloud has none."
  value       = local.identity
}

output "ports" {
  description = "The first and the last UDP port that is open."
  value       = [local.first_port, local.last_port]
}
