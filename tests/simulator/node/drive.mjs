// Drives a simulator with the official Node SDK: `node drive.mjs FOLDER URL KEY`, FOLDER being where it is installed.
// Calls each route once, from a meter to the bill, and prints what came back as one JSON object.

import { createRequire } from "node:module";

const [folder, baseURL, key] = process.argv.slice(2);
const { DodoPayments } = createRequire(`${folder}/`)("dodopayments");
const sdk = new DodoPayments({ bearerToken: key, baseURL, maxRetries: 0 });

// What the API has no route for: seeding, and time.
async function control(path, body) {
  const answer = await fetch(`${baseURL}/__sim${path}`, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// One page by hand: the SDK's own iteration leaves pages out.
const page = async (promise) => (await promise).items;

// Which error a refused call raises.
const refusal = (promise) => promise.then(() => null, (error) => error.constructor.name);

async function catalog() {
  const meter = await sdk.meters.create({
    name: "tokens", event_name: "llm.tokens", measurement_unit: "tokens", aggregation: { type: "sum", key: "n" },
  });
  await sdk.meters.archive(meter.id);
  const archived = await page(sdk.meters.list({ archived: true, page_number: 0 }));
  await sdk.meters.unarchive(meter.id);
  const credits = await sdk.creditEntitlements.create({
    name: "credits", unit: "credit", precision: 2, overage_enabled: false, rollover_enabled: false,
  });
  await sdk.creditEntitlements.update(credits.id, { name: "coins" });
  await sdk.creditEntitlements.delete(credits.id);
  await sdk.creditEntitlements.undelete(credits.id);
  const price = (free) => ({
    type: "usage_based_price", currency: "USD", fixed_price: 1000, discount: 0, purchasing_power_parity: false,
    payment_frequency_count: 1, payment_frequency_interval: "Month",
    subscription_period_count: 20, subscription_period_interval: "Year",
    meters: [{ meter_id: meter.id, price_per_unit: "2", free_threshold: free }],
  });
  const products = [];
  for (const free of [100, 3_000_000_000]) {
    products.push(await sdk.products.create({ name: `free ${free}`, tax_category: "saas", price: price(free) }));
  }
  return {
    meter: (await sdk.meters.retrieve(meter.id)).id,
    archived: archived.map((one) => one.id),
    credits: (await sdk.creditEntitlements.retrieve(credits.id)).id,
    kinds: (await page(sdk.creditEntitlements.list({ page_number: 0 }))).map((one) => one.name),
    products: products.map((one) => one.product_id),
    listed: (await page(sdk.products.list({ page_number: 0 }))).map((one) => one.product_id),
    product: (await sdk.products.retrieve(products[0].product_id)).name,
  };
}

async function customer() {
  const made = await sdk.customers.create({ email: "ada@example.com", name: "Ada" });
  const id = made.customer_id;
  await sdk.customers.update(id, { name: "Grace" });
  await sdk.customers.wallets.ledgerEntries.create(id, { amount: 500, currency: "USD", entry_type: "credit" });
  return {
    id,
    name: (await sdk.customers.retrieve(id)).name,
    listed: (await page(sdk.customers.list({ page_number: 0 }))).map((one) => one.customer_id),
    entitlements: (await sdk.customers.listEntitlements(id)).items,
    wallet: (await sdk.customers.wallets.list(id)).items[0].balance,
    moved: (await page(sdk.customers.wallets.ledgerEntries.list(id, { page_number: 0 }))).map((one) => one.amount),
  };
}

async function usage(who, made) {
  const [subscription] = (await control("/seed", {
    subscriptions: [{ customer_id: who.id, product_id: made.products[0] }],
  })).subscriptions;
  const event = { event_id: "node-1", customer_id: who.id, event_name: "llm.tokens", metadata: { n: 150 } };
  const first = await sdk.usageEvents.ingest({ events: [event] });
  const again = await sdk.usageEvents.ingest({ events: [event] });
  const twice = await refusal(sdk.usageEvents.ingest({ events: [event, event] }));
  await control("/clock", { advance_s: 90 });
  const [cycle] = await page(sdk.subscriptions.retrieveUsageHistory(subscription, { page_number: 0 }));
  return {
    subscription,
    counts: [first.ingested_count, again.ingested_count],
    twice,
    events: (await page(sdk.usageEvents.list({ customer_id: who.id, page_number: 0 }))).map((one) => one.event_id),
    read: (await sdk.usageEvents.retrieve("node-1")).metadata,
    missing: await refusal(sdk.usageEvents.retrieve("node-2")),
    billed: cycle.meters.map((one) => [one.consumed_units, one.chargeable_units, one.total_price]),
  };
}

async function plans(id, made) {
  const order = { product_id: made.products[1], proration_billing_mode: "full_immediately", quantity: 1 };
  const preview = await sdk.subscriptions.previewChangePlan(id, order);
  await sdk.subscriptions.changePlan(id, { ...order, effective_at: "next_billing_date" });
  const planned = (await sdk.subscriptions.retrieve(id)).scheduled_change.product_id;
  await sdk.subscriptions.cancelChangePlan(id);
  const paid = await sdk.subscriptions.changePlan(id, order);
  const payment = await sdk.payments.retrieve(paid.payment_id);
  const paused = await sdk.subscriptions.update(id, { status: "paused" });
  const resumed = await sdk.subscriptions.update(id, { status: "active" });
  return {
    lines: preview.immediate_charge.line_items.map((one) => [one.type, one.units_consumed ?? null]),
    planned,
    product: (await sdk.subscriptions.retrieve(id)).product_id,
    listed: (await page(sdk.subscriptions.list({ page_number: 0 }))).map((one) => one.subscription_id),
    payment: [payment.charge_type, payment.includes_usage],
    payments: (await page(sdk.payments.list({ page_number: 0 }))).length,
    items: (await sdk.payments.retrieveLineItems(paid.payment_id)).items.map((one) => one.amount),
    states: [paused.status, resumed.status],
    credits: (await sdk.subscriptions.retrieveCreditUsage(id)).items,
  };
}

async function credits(who, kind) {
  const of = { credit_entitlement_id: kind };
  const { balances } = sdk.creditEntitlements;
  const none = await refusal(balances.retrieve(who.id, of));
  const entry = { ...of, entry_type: "credit", amount: "500.5", idempotency_key: "once" };
  const made = await balances.createLedgerEntry(who.id, entry);
  return {
    none,
    after: made.balance_after,
    again: await refusal(balances.createLedgerEntry(who.id, entry)),
    balance: (await balances.retrieve(who.id, of)).balance,
    balances: (await page(balances.list(kind, { page_number: 0 }))).length,
    grants: (await page(balances.listGrants(who.id, { ...of, page_number: 0 }))).map((one) => one.remaining_amount),
    ledger: (await page(balances.listLedger(who.id, { ...of, page_number: 0 }))).map((one) => one.amount),
    held: (await sdk.customers.listCreditEntitlements(who.id)).items.map((one) => one.name),
  };
}

async function webhooks() {
  const made = await sdk.webhooks.create({ url: "http://127.0.0.1:9/a" });
  await sdk.webhooks.update(made.id, { disabled: true });
  const found = {
    disabled: (await sdk.webhooks.retrieve(made.id)).disabled,
    listed: (await sdk.webhooks.list()).data.length,
    secret: (await sdk.webhooks.retrieveSecret(made.id)).secret.slice(0, 6),
  };
  await sdk.webhooks.delete(made.id);
  return { ...found, gone: await refusal(sdk.webhooks.retrieve(made.id)) };
}

const found = { catalog: await catalog(), customer: await customer() };
found.usage = await usage(found.customer, found.catalog);
found.plans = await plans(found.usage.subscription, found.catalog);
found.credits = await credits(found.customer, found.catalog.credits);
found.webhooks = await webhooks();
console.log(JSON.stringify(found));
