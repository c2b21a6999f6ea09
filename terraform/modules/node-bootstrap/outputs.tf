output "user_data" {
  description = "User data for cloud-init, as `#cloud-config`. It contains the join token, which the machine deletes once it has joined."
  value       = "#cloud-config\n${yamlencode(local.user_data)}"
  sensitive   = true
}

output "script" {
  description = "The script that installs the programs and joins the mesh, for machines without cloud-init. It needs the files that `user_data` writes."
  value       = local.bootstrap
}

output "unit" {
  description = "The systemd unit of the node daemon."
  value       = local.unit
}
