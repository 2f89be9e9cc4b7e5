// The settings of node-postgres from a connection string of libpq without quotes.
export function settings(dsn) {
  const told = Object.fromEntries(dsn.split(" ").map((word) => word.split("=")));
  return { host: told.host, port: Number(told.port), user: told.user, database: told.dbname };
}
