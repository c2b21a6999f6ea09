-- A database of version 0.1.0 (format 3), as `sqlite3 mesh.db .dump` writes it.
CREATE TABLE audit (revision INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        why TEXT, origin TEXT);
INSERT INTO "audit" VALUES(1,'2026-01-01T00:00:00Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(2,'2026-01-01T00:00:01Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(3,'2026-01-01T00:00:02Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(4,'2026-01-01T00:00:03Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(5,'2026-01-01T00:00:04Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(6,'2026-01-01T00:00:05Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(7,'2026-01-01T00:00:06Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(8,'2026-01-01T00:00:07Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(9,'2026-01-01T00:00:08Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(10,'2026-01-01T00:00:09Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(11,'2026-01-01T00:00:10Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(12,'2026-01-01T00:00:11Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(13,'2026-01-01T00:00:12Z','user:admin','changed it','because','192.0.2.9');
INSERT INTO "audit" VALUES(14,'2026-01-01T00:00:13Z','user:admin','changed it','because','192.0.2.9');
CREATE TABLE floors (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE history (kind TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT,
        PRIMARY KEY (kind, name, revision)) WITHOUT ROWID;
INSERT INTO "history" VALUES('policy','shop',13,'{"Policy":{"network":"shop","files":[{"name":"shop.yaml","text":"network: shop\nrules:\n  - { name: web, from: {}, to: { app: web }, allow: [tcp/80] }\n"}],"resets":2}}');
INSERT INTO "history" VALUES('quarantine','q-1',14,'{"Quarantine":{"id":"q-1","network":"shop","selector":{"app":"bad"},"allow_from":{"app":"forensics"},"by_admin":true,"reset":true,"since":"2026-01-01T00:00:00Z","until":"2026-01-02T00:00:00Z","by":"user:admin","why":"drill"}}');
CREATE TABLE records (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (kind, name)) WITHOUT ROWID;
INSERT INTO "records" VALUES('approval','shop/rack-1/192.168.7.0/24','{"Approval":{"network":"shop","node":"rack-1","prefix":"192.168.7.0/24"}}',5);
INSERT INTO "records" VALUES('approved-node','rack-2','{"ApprovedNode":{"name":"rack-2","labels":{"zone":"b"}}}',3);
INSERT INTO "records" VALUES('credential','admin','{"Credential":{"name":"admin","secret_hash":"dd","role":"admin","networks":[],"expires":2000000000}}',7);
INSERT INTO "records" VALUES('identity','1','{"Identity":{"id":1,"network":"shop","labels":{"app":"web"},"accepts":["app=db"]}}',8);
INSERT INTO "records" VALUES('image','sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef','{"Image":{"digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","verified":{"shop":[{"payload":"cGF5bG9hZA==","signature":"c2ln"}]},"reported":{"rack-1":[{"payload":"cGF5bG9hZA==","signature":"c2ln"}]},"signatures":[{"payload":"cGF5bG9hZA==","signature":"c2ln"}]}}',12);
INSERT INTO "records" VALUES('network','shop','{"Network":{"name":"shop","prefixes":["10.42.0.0/16","fd42::/48"],"block_v4":24,"block_v6":64,"mtu":1420}}',1);
INSERT INTO "records" VALUES('node','rack-1','{"Node":{"name":"rack-1","site":"eu","labels":{"zone":"a"},"networks":["shop"],"key":"aa","endpoints":{"shop":{"public_key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","candidates":["192.0.2.1:51820"],"previous_key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}},"blocks":{"shop":["10.42.1.0/24","fd42:0:0:1::/64"]},"problems":{},"waiting":false,"forget_after":600}}',2);
INSERT INTO "records" VALUES('policy','shop','{"Policy":{"network":"shop","files":[{"name":"shop.yaml","text":"network: shop\nrules:\n  - { name: web, from: {}, to: { app: web }, allow: [tcp/80] }\n"}],"resets":2}}',13);
INSERT INTO "records" VALUES('quarantine','q-1','{"Quarantine":{"id":"q-1","network":"shop","selector":{"app":"bad"},"allow_from":{"app":"forensics"},"by_admin":true,"reset":true,"since":"2026-01-01T00:00:00Z","until":"2026-01-02T00:00:00Z","by":"user:admin","why":"drill"}}',14);
INSERT INTO "records" VALUES('relay','relay-eu','{"Relay":{"name":"relay-eu","number":2,"site":"eu","key":"bb","addresses":["192.0.2.2:7443"],"stun_port":3478}}',4);
INSERT INTO "records" VALUES('token','0011223344556677','{"Token":{"id":"0011223344556677","secret_hash":"cc","uses_left":3,"expires":2000000000,"site":"eu","networks":["shop"],"relay":false,"needs_approval":true,"forget_after":null}}',6);
INSERT INTO "records" VALUES('workload','w-1','{"Workload":{"id":"w-1","network":"shop","node":"rack-1","name":"web","addresses":["10.42.1.2"],"declared":{"app":"web"},"accepts":["app=db"],"given":{"labels":{"suspect":"yes"},"until":2000000000},"measurement":{"runtime":"docker","images":[{"repository":"docker.io/library/nginx","digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}],"config":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","privileges":["capability NET_ADMIN"],"sharing":[]},"identity":1}}',9);
INSERT INTO "records" VALUES('workload','w-2','{"Workload":{"id":"w-2","network":"shop","node":"rack-1","name":"gateway","addresses":["10.42.1.3"],"prefixes":["192.168.7.0/24"],"device":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","declared":{"app":"web"},"identity":1}}',10);
INSERT INTO "records" VALUES('workload','w-3','{"Refused":{"node":"rack-1","report":{"id":"w-3","network":"shop","name":"bad","labels":{"app":"bad"},"addresses":["10.42.1.4"],"prefixes":[],"device":null,"accepts":["app=db"],"measurement":{"runtime":"docker","images":[{"repository":"docker.io/library/nginx","digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}],"config":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","privileges":["capability NET_ADMIN"],"sharing":[]},"signatures":[],"objection":"no"},"given":{"labels":{"a":"b"},"until":null},"reasons":["not signed"]}}',11);
CREATE INDEX history_by_revision ON history (revision);
PRAGMA user_version = 3;
