package main

import "github.com/keyfire/keyfire/examples/nodes/internal/sales"

// mistakes spoil the order with that number, each in a way that exports are spoiled in.
var mistakes = map[int]func([]string) []string{
	41:   set(1, "2025-02-30"),                                                        // no such day
	97:   set(8, "12,50"),                                                             // decimal comma
	163:  set(7, "0"),                                                                 // nothing ordered
	222:  set(3, "Deutschland"),                                                       // a name instead of a code
	305:  set(9, "returned"),                                                          // a status of another system
	388:  set(4, "CHF"),                                                               // another currency
	452:  set(7, "-2"),                                                                // a refund booked as a negative quantity
	530:  func(record []string) []string { return append(record, "express") },         // a field too many
	611:  set(0, "KR-10923"),                                                          // an order id used before
	702:  set(2, " "),                                                                 // no customer
	781:  set(1, "14.05.2025"),                                                        // a date in local form
	869:  func(record []string) []string { return append(record[:6], record[7:]...) }, // product lost
	950:  set(8, "1.249.00"),                                                          // points for thousands
	1044: set(7, "2.5"),                                                               // half a pair
	1131: set(4, ""),                                                                  // currency lost
}

func set(field int, value string) func([]string) []string {
	return func(record []string) []string {
		record[field] = value
		return record
	}
}

// customers, the best ones first. All names are made up.
var customers = []struct{ name, country string }{
	{"Radhaus Isar GmbH", "DE"},
	{"Fietsenmakerij De Ketting B.V.", "NL"},
	{"Müller, Söhne & Enkel Zweiradteile KG", "DE"},
	{`Cycles "Le Petit Braquet" SARL`, "FR"},
	{"Nordlicht Cykler A/S", "DK"},
	{"Bicicletas Sierra Alta, S.L.", "ES"},
	{"Velowerk|statt Leipzig e.G.", "DE"},
	{"Officina *Due Ruote* S.r.l.", "IT"},
	{"Speichenwerk Linz OG", "AT"},
	{"Atelier du Dérailleur", "FR"},
	{"Fahrrad Fuchs\nFiliale Nord", "DE"},
	{"Fahrrad Fuchs\nFiliale Süd", "DE"},
	{"Kolo_Serwis Wrocław sp. z o.o.", "PL"},
	{"Wheelhouse Cork Ltd", "IE"},
	{"Pyöräpaja Saimaa Oy", "FI"},
	{"De Snelle Spaak", "BE"},
	{"Rad, Tat & Co.", "DE"},
	{"Ciclos O'Brien & Filhos, Lda.", "PT"},
	{"Cyklo <Morava> s.r.o.", "CZ"},
	{"Le Guidon Vert", "FR"},
	{"Tweewielers Van den Berg", "NL"},
	{"Bike Kitchen Graz", "AT"},
	{"La Cadena Rota", "ES"},
	{"Lastenradkollektiv Kiel", "DE"},
	{"Bottega del Pedale", "IT"},
	{"Vélociste Grand-Place", "BE"},
	{"Zweirad-Center Allgäu", "DE"},
	{"Kædeskiftet ApS", "DK"},
	{"Rowery \"U Zosi\"", "PL"},
	{"Fixie Factory, Dublin", "IE"},
	{"Rattaäri Tartu OÜ", "EE"},
	{"Dviračių Dirbtuvė UAB", "LT"},
	{"Atelier Vëlo Esch", "LU"},
	{"Biciklin d.o.o.", "SI"},
	{"Ποδήλατα Αττικής", "GR"},
	{"Kolesa #1 Maribor", "SI"},
}

// products, the best-selling ones first, with the most anybody orders at once.
var products = []struct {
	sku, name string
	price     sales.Cents
	most      int
}{
	{"TUB-700-28", "Inner tube 700 x 28C, presta valve", 495, 120},
	{"CHN-11-116", "Chain, 11-speed, 116 links", 2290, 40},
	{"BRK-PAD-R", "Brake pads, resin (pair)", 890, 80},
	{"TYR-28-KIES", `Tyre 28" "Kiesel", 40 mm`, 3450, 30},
	{"CBL-BRK-17", "Brake cable 1.7 m, stainless", 325, 150},
	{"CAS-11-1134", "Cassette 11-speed, 11-34", 5990, 12},
	{"GRP-CORK", "Grips, cork, pair", 1275, 40},
	{"TYR-26-LAST", `Tyre 26" cargo, 55 mm`, 4190, 20},
	{"BRK-ROT-160", "Brake rotor 160 mm, centre lock", 2790, 24},
	{"PED-FLAT-AL", "Pedals, flat, aluminium", 3995, 16},
	{"LGT-F-60", "Front light, 60 lux, dynamo", 5450, 15},
	{"LGT-R-STD", "Rear light with stand light", 2150, 25},
	{"SAD-TOUR", "Saddle, touring, unisex", 4790, 10},
	{"RIM-622-32", "Rim 622 mm, 32 holes", 3890, 16},
	{"SPK-DB-264", "Spokes, double butted, 264 mm (box of 72)", 4320, 10},
	{"HUB-DYN-32", "Hub dynamo, 32 holes, 6-bolt", 8990, 8},
	{"BAR-TAPE-C", "Bar tape, cork, black", 1490, 40},
	{"MUD-28-SET", `Mudguard set 28", 46 mm`, 3275, 15},
	{"RCK-R-25", "Rear rack, 25 kg", 4450, 10},
	{"LCK-CHN-110", "Chain lock 110 cm", 6490, 12},
	{"BOX-CARGO-L", "Cargo box, birch, 94 x 62 cm", 28900, 3},
	{"MOT-MID-250", "Mid-drive motor, 250 W", 64900, 4},
	{"BAT-36-14", "Battery 36 V, 14 Ah", 48900, 5},
	{"FRM-LAST-M", "Frame, long john, size M", 129900, 2},
}
