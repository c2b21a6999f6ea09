resource "meshward_join_token" "aws" {
  site           = "aws-eu1"
  uses           = 3
  ttl            = "2h"
  needs_approval = true
}

# For an autoscaling group: nodes without contact are removed.
resource "meshward_join_token" "workers" {
  site         = "aws-eu1"
  uses         = 1000
  ttl          = "720h"
  forget_after = "15m"
}
