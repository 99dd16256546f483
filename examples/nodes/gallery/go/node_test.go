package main

import (
	"reflect"
	"testing"

	"github.com/keyfire/keyfire/sdk/node/nodetest"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	doc := "id,customer,country,qty,price\na,Ada,DE,2,250\nb,Bo,FR,x,1\n,Cy,FR,1,1\nd,Di,fr,1,1\ne,Ed,DE,1,\nf,Fi,AT,1,0\n1,2\n"
	got, err := summarize(nodetest.Context(t, nodetest.Host{}), input{doc})
	want := output{
		2,
		[]rejection{{3, "qty"}, {4, "id"}, {5, "country"}, {6, "price"}, {8, "fields"}},
		[]country{{"AT", 1, 1, 0}, {"DE", 1, 2, 500}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}
