# The plan fails if a test of the policy fails.
data "meshward_policy_check" "shop" {
  files  = { for name in fileset(path.module, "policy/*.yaml") : name => file("${path.module}/${name}") }
  strict = true
}

output "tests_passed" {
  value = data.meshward_policy_check.shop.tests_passed
}
