data "meshward_join_token" "old" {
  id = "1f2e3d4c"
}

output "expires" {
  value = data.meshward_join_token.old.expires
}
