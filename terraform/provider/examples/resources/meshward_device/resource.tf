resource "meshward_device" "db" {
  name       = "db-legacy"
  network    = "shop"
  gateway    = "gw1"
  labels     = { app = "db" }
  public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
}
