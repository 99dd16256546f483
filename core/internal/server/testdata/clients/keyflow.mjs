async function query(data) {
    const response = await fetch(
      process.env.BASE + "/api/trigger",
      {
          headers: {
            'X-API-Key': process.env.BOUND,
            'Content-Type': 'application/json'
          },
          method: "POST",
          body: JSON.stringify(data),
      });
    const result = await response.json();
    return result;
}

query({
  "inputs": {
    "Reference Document": "",
    "undefined": "",
    "Role Context": ""
  }
})
  .then((response) => {
            console.log(JSON.stringify(response));
        });
