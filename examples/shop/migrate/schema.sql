CREATE TABLE IF NOT EXISTS products (
    sku         text PRIMARY KEY,
    position    int  NOT NULL,
    name        text NOT NULL,
    description text NOT NULL,
    picture     text NOT NULL,
    cents       int  NOT NULL CHECK (cents > 0)
);

CREATE TABLE IF NOT EXISTS orders (
    id         text PRIMARY KEY,
    shopper    text NOT NULL,
    key        text NOT NULL,
    name       text NOT NULL,
    state      text NOT NULL DEFAULT 'placed' CHECK (state IN ('placed', 'packed', 'shipped')),
    cents      int  NOT NULL DEFAULT 0,
    placed_at  timestamptz NOT NULL DEFAULT now(),
    packed_at  timestamptz,
    shipped_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now(),
    placed_by  text NOT NULL,
    packed_by  text NOT NULL DEFAULT '',
    UNIQUE (shopper, key)
);

CREATE INDEX IF NOT EXISTS orders_of_shopper ON orders (shopper, placed_at DESC);
CREATE INDEX IF NOT EXISTS orders_under_way ON orders (changed_at) WHERE state <> 'shipped';

CREATE TABLE IF NOT EXISTS order_lines (
    order_id text NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    sku      text NOT NULL,
    name     text NOT NULL,
    cents    int  NOT NULL,
    quantity int  NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, sku)
);
