BEGIN TRANSACTION;
CREATE TABLE seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "seen" VALUES('w1',1780000000);
CREATE TABLE subscriptions (
    id TEXT PRIMARY KEY, sent_at INTEGER NOT NULL, record BLOB NOT NULL, applied INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "subscriptions" VALUES('sub_1',5,'{}',0);
CREATE INDEX seen_at ON seen (at);
CREATE INDEX waiting ON subscriptions (id) WHERE applied = 0;
CREATE INDEX by_customer ON subscriptions (json_extract(CAST(record AS TEXT), '$.customer.customer_id'));
COMMIT;
