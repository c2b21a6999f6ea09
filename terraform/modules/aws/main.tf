terraform {
  required_version = ">= 1.11"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.25"
    }
  }
}

locals {
  names      = [for index in range(var.node_count) : "${var.name}-${index}"]
  first_port = var.ports.first
  last_port  = var.ports.first + var.ports.count - 1
}

module "bootstrap" {
  source   = "../node-bootstrap"
  for_each = toset(local.names)

  name        = each.key
  coordinator = var.coordinator
  token       = var.token
  package     = var.package
  labels      = var.labels
  settings    = merge({ first_port = local.first_port }, var.settings)
}

locals {
  tags = merge(var.tags, { Name = var.name })
  nodes = { for name, machine in aws_instance.node : name => {
    id              = machine.id
    private_address = machine.private_ip
    public_address  = machine.public_ip
  } }
  identity = aws_iam_role.node.arn
}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"]
  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

resource "aws_vpc" "this" {
  cidr_block           = var.cidr
  enable_dns_hostnames = true
  tags                 = local.tags
}

resource "aws_subnet" "this" {
  vpc_id                  = aws_vpc.this.id
  cidr_block              = var.cidr
  availability_zone       = var.location
  map_public_ip_on_launch = true
  tags                    = local.tags
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = local.tags
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
  tags   = local.tags
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.this.id
  }
}

resource "aws_route_table_association" "this" {
  subnet_id      = aws_subnet.this.id
  route_table_id = aws_route_table.this.id
}

resource "aws_security_group" "this" {
  name_prefix = "${var.name}-"
  description = "Meshward nodes: UDP of the mesh, nothing else"
  vpc_id      = aws_vpc.this.id
  tags        = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "mesh" {
  security_group_id = aws_security_group.this.id
  description       = "WireGuard, one port for each network"
  ip_protocol       = "udp"
  from_port         = local.first_port
  to_port           = local.last_port
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.this.id
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

resource "aws_iam_role" "node" {
  name_prefix = "${var.name}-"
  tags        = local.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_instance_profile" "node" {
  name_prefix = "${var.name}-"
  role        = aws_iam_role.node.name
  tags        = local.tags
}

resource "aws_instance" "node" {
  for_each = module.bootstrap

  ami                    = coalesce(var.machine.image, data.aws_ami.debian.id)
  instance_type          = coalesce(var.machine.type, "t3.small")
  subnet_id              = aws_subnet.this.id
  vpc_security_group_ids = [aws_security_group.this.id]
  iam_instance_profile   = aws_iam_instance_profile.node.name
  user_data              = each.value.user_data
  tags                   = merge(local.tags, { Name = each.key })

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }
  root_block_device {
    volume_size = var.machine.disk_gb
    encrypted   = true
  }
  lifecycle {
    # A newer image, and a token that is long used, replace no machine.
    ignore_changes = [ami, user_data]
  }
}
