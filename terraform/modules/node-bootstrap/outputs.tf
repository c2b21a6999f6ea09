output "user_data" {
  description = "What cloud-init takes, as `#cloud-config`. It holds the join token, which is deleted from the machine once it has joined."
  value       = "#cloud-config\n${yamlencode(local.user_data)}"
  sensitive   = true
}

output "script" {
  description = "The script that installs and joins, for machines without cloud-init: it expects the files that `user_data` writes."
  value       = local.bootstrap
}

output "unit" {
  description = "The unit of systemd."
  value       = local.unit
}
