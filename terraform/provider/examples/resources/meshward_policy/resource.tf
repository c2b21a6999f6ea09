resource "meshward_network" "shop" {
  name     = "shop"
  prefixes = ["10.42.0.0/16"]
}

# Files in the policy language, blocks, or both.
resource "meshward_policy" "shop" {
  network = meshward_network.shop.id
  files   = { for name in fileset(path.module, "policy/*.yaml") : name => file("${path.module}/${name}") }

  rule {
    name  = "web-to-api"
    from  = "app=web"
    to    = "app=api"
    allow = ["tcp/8080"]
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
