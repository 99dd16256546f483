# Counts orders.csv a second time, with nothing in common with the nodes but the rules, so that the report can be checked:
#
#   awk -f totals.awk orders.csv
#
# Plain POSIX awk. Amounts are integers in cents, which awk's numbers hold exactly up to 2^53.

BEGIN {
	split("order_id order_date customer country currency sku product quantity unit_price status", want, " ")
	for (i in want) required[want[i]] = 1
	split("31 28 31 30 31 30 31 31 30 31 30 31", month_days, " ")
}

# A quoted field may hold line breaks: a record ends where its quotes are even.
{
	record = open ? record "\n" $0 : $0
	quotes = record
	open = gsub(/"/, "", quotes) % 2
	if (open || record == "") next
	fields = parse(record, field)
	if (!header) {
		header = fields
		for (i = 1; i <= fields; i++) at[field[i]] = i
		for (name in required) if (!(name in at)) { print "no column " name | "cat >&2"; missing = 1; exit }
		next
	}
	count()
}

END {
	if (missing) exit 1
	print "accepted " accepted + 0 " rejected " rejected + 0
	print line("total", "all")
	fflush() # sort writes to the same place
	for (key in seen_month) print line("month", key) | "sort"
	close("sort")
	for (key in seen_country) print line("country", key) | "sort"
	close("sort")
}

# parse takes a CSV record apart into out and returns the number of fields.
function parse(text, out,    n, i, c, quoted) {
	n = 1; out[1] = ""; quoted = 0
	for (i = 1; i <= length(text); i++) {
		c = substr(text, i, 1)
		if (c == "\"") {
			if (quoted && substr(text, i + 1, 1) == "\"") { out[n] = out[n] c; i++ }
			else quoted = !quoted
		} else if (c == "," && !quoted) out[++n] = ""
		else out[n] = out[n] c
	}
	return n
}

function get(name,    s) {
	s = field[at[name]]
	gsub(/[ \t\n]+/, " ", s); sub(/^ /, "", s); sub(/ $/, "", s)
	return s
}

function valid_date(s,    part, days) {
	if (s !~ /^[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]$/) return 0
	split(s, part, "-")
	if (part[2] < 1 || part[2] > 12) return 0
	days = month_days[part[2] + 0]
	if (part[2] == 2 && part[1] % 4 == 0 && (part[1] % 100 != 0 || part[1] % 400 == 0)) days = 29
	return part[3] >= 1 && part[3] <= days
}

function valid(    ok) {
	if (fields != header) return 0
	if (get("order_id") == "" || get("customer") == "" || get("sku") == "") return 0
	if (get("order_id") in seen_id) return 0
	if (!valid_date(get("order_date"))) return 0
	if (get("country") !~ /^[A-Z][A-Z]$/) return 0
	if (get("currency") != "EUR") return 0
	if (get("quantity") !~ /^[1-9][0-9]*$/ || get("quantity") + 0 > 10000) return 0
	if (get("unit_price") !~ /^[0-9]+\.[0-9][0-9]$/) return 0
	return get("status") ~ /^(paid|shipped|refunded|cancelled)$/
}

function count(    price, quantity, month, country) {
	if (!valid()) { rejected++; return }
	accepted++
	seen_id[get("order_id")] = 1
	month = substr(get("order_date"), 1, 7); seen_month[month] = 1
	country = get("country"); seen_country[country] = 1
	price = get("unit_price"); sub(/\./, "", price)
	quantity = get("quantity") + 0
	add("total", "all", quantity, quantity * price, get("status"))
	add("month", month, quantity, quantity * price, get("status"))
	add("country", country, quantity, quantity * price, get("status"))
}

function add(kind, key, quantity, amount, status) {
	if (status == "cancelled") { cancelled[kind, key]++; return }
	orders[kind, key]++
	gross[kind, key] += amount
	if (status == "refunded") refunds[kind, key] += amount
	else units[kind, key] += quantity
}

# %.0f, because %d stops at 2^31 in some awks.
function line(kind, key) {
	return sprintf("%s %s orders %d cancelled %d units %d gross_cents %.0f refund_cents %.0f net_cents %.0f", kind, key,
		orders[kind, key], cancelled[kind, key], units[kind, key],
		gross[kind, key], refunds[kind, key], gross[kind, key] - refunds[kind, key])
}
