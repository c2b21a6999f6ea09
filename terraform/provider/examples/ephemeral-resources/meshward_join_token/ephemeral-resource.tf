# The token goes to the cloud's secret store, and is not in the state.
ephemeral "meshward_join_token" "aws" {
  site = "aws-eu1"
  uses = 3
  ttl  = "2h"
}

resource "aws_secretsmanager_secret_version" "token" {
  secret_id                = "meshward-join-token"
  secret_string_wo         = ephemeral.meshward_join_token.aws.token
  secret_string_wo_version = 1
}
