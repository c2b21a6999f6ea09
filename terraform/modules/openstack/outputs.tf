# This file is the same in every module that creates nodes.

output "node_names" {
  description = "The names of the nodes in the mesh, known during the plan."
  value       = local.names
}

output "nodes" {
  description = "The machines by node name, with the cloud's id and the addresses; `public_address` is null if there is none."
  value       = local.nodes
}

output "identity" {
  description = "The identity of the machines in the cloud, to which you can grant permissions; null if the cloud has none."
  value       = local.identity
}

output "ports" {
  description = "The first and the last open UDP port."
  value       = [local.first_port, local.last_port]
}
