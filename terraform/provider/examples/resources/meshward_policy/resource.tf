resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}

# Files in the policy language, blocks, or both.
resource "meshward_policy" "shop" {
  network = meshward_network.shop.id
  files   = { for name in fileset(path.module, "policy/*.yaml") : name => file("${path.module}/${name}") }

  service {
    name        = "api"
    for         = "app=api"
    ports       = ["tcp/80 to 8080"]
    prefer      = ["node", "site"]
    health_http = "/healthz"
  }
  rule {
    name       = "web-to-api"
    from       = "app=web"
    to_service = "api"
  }
  rule {
    name  = "api-to-db"
    from  = "app=api"
    to    = "app=db"
    allow = ["tcp/5432"]
  }
  # What is outside of the mesh is reached through egress gateways.
  rule {
    name    = "api-to-the-bank"
    from    = "app=api"
    to_cidr = ["203.0.113.0/24"]
    allow   = ["tcp/443"]
  }
  rule {
    name   = "api-to-its-storage"
    from   = "app=api"
    to_dns = ["*.s3.eu-west-1.amazonaws.com"]
    allow  = ["tcp/443"]
  }
  guardrail {
    name = "dev-never-reaches-prod"
    from = "env=dev"
    to   = "env=prod"
    deny = ["any"]
  }
  test {
    from   = "app=web,env=prod"
    to     = "app=db,env=prod"
    port   = "tcp/5432"
    expect = "deny"
  }
}
