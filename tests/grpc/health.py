"""Serves grpc.health.v1 at a port. Each line of the input sets a status: SERVICE STATUS."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

server = grpc.server(ThreadPoolExecutor(max_workers=4))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
assert server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
print("ready", flush=True)
for line in sys.stdin:
    service, status = line.split()
    servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
server.stop(None).wait()
