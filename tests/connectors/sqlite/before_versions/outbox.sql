BEGIN TRANSACTION;
CREATE TABLE acts (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, by TEXT NOT NULL, act TEXT NOT NULL, id TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE alerts (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL, text TEXT NOT NULL
);
INSERT INTO "alerts" VALUES(1,'late','raised',1780000000000000,'text');
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "counts" VALUES('acknowledged',1);
INSERT INTO "counts" VALUES('came',2);
INSERT INTO "counts" VALUES('now_acknowledged',1);
INSERT INTO "counts" VALUES('now_waiting',1);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, at INTEGER NOT NULL,
    state INTEGER NOT NULL, body BLOB, came_at INTEGER NOT NULL, came_up INTEGER NOT NULL,
    hold_until INTEGER NOT NULL DEFAULT 0, sent_at INTEGER, unsure_at INTEGER, restamped_at INTEGER,
    settled_at INTEGER, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT ''
);
INSERT INTO "events" VALUES(1,'e1','acme',1780000000000000,1,X'7B2278223A317D',1780000000000000,0,0,NULL,NULL,NULL,1780000000000000,'','');
INSERT INTO "events" VALUES(2,'e2','acme',1780000000000000,0,X'7B2278223A327D',1780000000000000,0,0,NULL,NULL,NULL,NULL,'','');
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('noted',0);
INSERT INTO "meta" VALUES('running',0);
INSERT INTO "meta" VALUES('snapshot',0);
INSERT INTO "meta" VALUES('tidegate_outbox',1);
CREATE TABLE rollups (
    customer TEXT, meter TEXT, start INTEGER, length INTEGER, at INTEGER NOT NULL, total TEXT NOT NULL,
    events INTEGER NOT NULL, billed TEXT NOT NULL DEFAULT '0', billed_events INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0, due_at INTEGER, PRIMARY KEY (customer, meter, start, length, at)
) WITHOUT ROWID;
CREATE TABLE standing (kind TEXT PRIMARY KEY, at INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "standing" VALUES('late',1780000000000000,'text');
CREATE INDEX waiting ON events (at) WHERE state = 0;
CREATE INDEX unfolded ON events (seq) WHERE state = 6;
CREATE INDEX acknowledged ON events (settled_at) WHERE state = 1 AND body IS NOT NULL;
CREATE INDEX kept_back ON events (state, reason, customer) WHERE state IN (2, 3);
CREATE INDEX restamped ON events (restamped_at) WHERE restamped_at IS NOT NULL;
CREATE INDEX due ON rollups (due_at) WHERE due_at IS NOT NULL;
COMMIT;
