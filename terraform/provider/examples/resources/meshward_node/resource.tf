resource "meshward_node" "aws" {
  count  = 3
  name   = "aws-eu1-${count.index}"
  labels = { tier = "public" }
}
