resource "meshward_join_token" "aws" {
  site           = "aws-eu1"
  uses           = 3
  ttl            = "2h"
  needs_approval = true
}
