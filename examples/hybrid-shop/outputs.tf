output "nodes" {
  description = "The machines of all sites by their nodes' names."
  value       = merge(module.aws.nodes, module.openstack.nodes, module.rack.nodes)
}

output "policy_revision" {
  description = "The revision that made the policy what it is."
  value       = meshward_policy.shop.revision
}
