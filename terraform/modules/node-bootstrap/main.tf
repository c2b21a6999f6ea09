terraform {
  required_version = ">= 1.11"
}

locals {
  unit = file("${path.module}/files/meshward-node.service")
  # TOML writes texts, numbers, truth values and lists of these as JSON does.
  settings = join("", [for key, value in var.settings : "${key} = ${jsonencode(value)}\n"])
  bootstrap = templatefile("${path.module}/files/bootstrap.sh.tftpl", {
    name        = var.name
    coordinator = var.coordinator
    url         = var.package.url
    sha256      = var.package.sha256
    labels      = join(" ", [for key, value in var.labels : "--label '${key}=${value}'"])
    firewall    = var.firewall_ports != null
  })
  firewall = var.firewall_ports == null ? "" : templatefile("${path.module}/files/firewall.nft.tftpl", var.firewall_ports)
  files = concat(
    [
      { path = "/usr/local/lib/meshward/bootstrap", permissions = "0755", content = local.bootstrap },
      { path = "/etc/systemd/system/meshward-node.service", permissions = "0644", content = local.unit },
      { path = "/etc/meshward/node.toml", permissions = "0644", content = local.settings },
      { path = "/etc/meshward/join-token", permissions = "0600", content = "${var.token}\n" },
    ],
    var.firewall_ports == null ? [] : [{ path = "/etc/meshward/firewall.nft", permissions = "0644", content = local.firewall }],
  )
  user_data = {
    write_files = [for own in local.files : merge(own, { owner = "root:root" })]
    packages    = var.firewall_ports == null ? ["ca-certificates", "curl"] : ["ca-certificates", "curl", "nftables"]
    runcmd      = [["/usr/local/lib/meshward/bootstrap"]]
  }
}
