resource "meshward_join_token" "aws" {
  site           = "aws-eu1"
  uses           = 3
  ttl            = "2h"
  needs_approval = true
}

# For a group of machines that scales by itself: those that are gone are forgotten.
resource "meshward_join_token" "workers" {
  site         = "aws-eu1"
  uses         = 1000
  ttl          = "720h"
  forget_after = "15m"
}
