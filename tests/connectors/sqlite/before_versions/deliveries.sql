BEGIN TRANSACTION;
CREATE TABLE deliveries (
    target TEXT, id TEXT, body BLOB, made_at REAL, tries INTEGER DEFAULT 0, due_at REAL,
    state TEXT DEFAULT 'waiting', error TEXT DEFAULT '', PRIMARY KEY (target, id)
) WITHOUT ROWID;
INSERT INTO "deliveries" VALUES('webhook:x','a1',X'7B7D',1780000000.0,0,1780000000.0,'waiting','');
CREATE INDEX due ON deliveries (target, state, due_at);
COMMIT;
